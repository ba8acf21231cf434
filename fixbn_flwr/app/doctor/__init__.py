"""`fixbn doctor`: what this machine has, and what to do about each problem."""
