"""Speed, memory, message sizes and the overhead of a round."""
