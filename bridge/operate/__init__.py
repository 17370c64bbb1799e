"""What operators do, for the commands and the console alike: each policy stands here once."""
