"""How the bundled model was made: draw captioned pictures, train on them, judge the result."""
