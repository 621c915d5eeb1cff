"""Reports for nodes and commands: doctor, engine list, comparison, benchmark."""
