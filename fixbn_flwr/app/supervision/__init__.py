"""Keep a run on real machines going: `fixbn supervise`."""
