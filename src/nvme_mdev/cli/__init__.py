"""The command line: a module per subcommand, found by `main`. It holds no state of its own."""
