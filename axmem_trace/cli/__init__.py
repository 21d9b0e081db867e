"""The command line: arguments, commands, and the output on a terminal.

parser     arguments of each command
commands   what each command does
terminal   progress, files and standard output
"""
