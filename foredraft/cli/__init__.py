"""The command `foredraft`: one file for each command."""
