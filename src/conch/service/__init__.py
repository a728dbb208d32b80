"""THE FRONT DESK: the two planes that every transport calls."""
