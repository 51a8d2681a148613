"""What a model costs and what it sees: operations, memory, feature maps and attention."""
