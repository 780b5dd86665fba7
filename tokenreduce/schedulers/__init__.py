"""The schedules that ship with tokenreduce, one file each."""
