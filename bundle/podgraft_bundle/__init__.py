"""What a .graft is: models, read, write, digest. Imported by all, imports none of ours."""
