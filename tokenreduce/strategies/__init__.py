"""The methods that ship with tokenreduce, one file each."""
