"""`python -m tokenreduce`, which torchrun uses too."""

from tokenreduce.cli import main

if __name__ == "__main__":
    main()
