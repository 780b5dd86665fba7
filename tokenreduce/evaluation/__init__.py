"""Answers on a data set, and what can be said of them: shares, intervals, paired differences."""
