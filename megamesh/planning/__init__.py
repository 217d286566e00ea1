"""What a run will need and take, before it starts: memory, layouts, wires, predicted speed, the dry run."""
