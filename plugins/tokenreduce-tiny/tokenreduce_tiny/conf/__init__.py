"""Options that this plug-in adds to the command line."""
