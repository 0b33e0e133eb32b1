"""Changes to a run that is under way: another mixture at a resume, and data that is left out."""
