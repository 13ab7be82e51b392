"""murmurate's peer: the protocol, the daemon around it, the learning inside it, the laboratory, the command line."""
