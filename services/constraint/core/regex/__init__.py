"""Regular expressions: two dialects, one syntax tree, automata over code points and over bytes."""
