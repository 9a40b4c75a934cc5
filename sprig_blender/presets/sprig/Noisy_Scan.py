import bpy

settings = bpy.context.scene.sprig

settings.skeleton = "auto"
settings.candidates = 1
settings.temperature = 0.0
settings.joints_mode = "AUTO"
settings.joints = 24
settings.tolerance = 0.5
settings.names = "sprig"
settings.influences = 4
settings.rest_correction = True
settings.stretch = False
settings.corrective = False
settings.root_motion = "hips"
settings.finetune_epochs = 12
