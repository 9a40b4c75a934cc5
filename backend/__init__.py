"""The rigging: numpy, scipy, torch and trimesh, never bpy. Importing this package imports nothing heavy."""
