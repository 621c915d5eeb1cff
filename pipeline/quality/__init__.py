"""How like another a clip is."""
