"""Everything that knows Blender. Importing this package imports neither bpy nor torch; registering imports no torch."""

from contextlib import ExitStack

_undo = ExitStack()  # how to take back what `register` did, last thing first


def register(package: str):
    """Register the add-on; `package` is the root package's name (`bl_ext.<repository>.sprig` inside Blender).

    Every step is followed by how to undo it, so that a failing registration leaves nothing behind either.
    """
    import bpy

    from . import (
        dependencies,
        file_import,
        jobs,
        operators,
        panel,
        preferences,
        preset_menu,
        preview,
        problems,
        properties,
        status,
        translations,
    )

    global _undo
    with ExitStack() as undo:
        for module in (properties, operators, file_import, preset_menu, panel):
            for cls in module.CLASSES:
                bpy.utils.register_class(cls)
                undo.callback(bpy.utils.unregister_class, cls)
        properties.register()
        undo.callback(properties.unregister)
        preferences.register(package)
        undo.callback(preferences.unregister)
        panel.register()
        undo.callback(panel.unregister)
        translations.register(package)
        undo.callback(translations.unregister, package)
        preset_menu.register()
        undo.callback(preset_menu.unregister)
        file_import.register()
        undo.callback(file_import.unregister)
        preview.register()
        undo.callback(preview.unregister)
        dependencies.register(package)
        undo.callback(dependencies.unregister)
        dependencies.use_folder(preferences.libraries_folder(bpy.context))
        command = bpy.utils.register_cli_command("sprig", _run_command)
        undo.callback(bpy.utils.unregister_cli_command, command)
        undo.callback(problems.forget)
        status.register()
        undo.callback(status.unregister)
        jobs.register()
        undo.callback(jobs.unregister)
        _undo = undo.pop_all()


def unregister():
    """Undo `register`."""
    _undo.close()


def _run_command(arguments: list[str]) -> int:
    """`blender -c sprig …` is the command line inside Blender."""
    from . import cli

    return cli.main(arguments)
