"""What the panel says in other languages; Blender shows it to those who have chosen one in its preferences.

A dictionary for each language, from our English to the other; a text without an entry stays English. Labels of
operators have a context of their own in Blender, everything else (settings, choices, tooltips, text with gaps) is in
the default one. To add a language, add such a pair of dictionaries; tests/blender/test_translations.py tells which of
their entries the panel does not have.
"""

from __future__ import annotations

import bpy

DEFAULT, OPERATOR = "*", "Operator"  # Blender's contexts

GERMAN_BUTTONS = {
    "Add Preset": "Vorlage hinzufügen",
    "Adjust Joints": "Gelenke anpassen",
    "Apply": "Anwenden",
    "Auto-Rig Sequence": "Sequenz automatisch riggen",
    "Both": "Beide",
    "Cancel": "Abbrechen",
    "Check for Export": "Für Export prüfen",
    "Clean Up": "Aufräumen",
    "Compare": "Vergleichen",
    "Copy Log": "Protokoll kopieren",
    "Copy Report": "Bericht kopieren",
    "Discard": "Verwerfen",
    "Dismiss": "Ausblenden",
    "Export to Game Engine": "In Spiel-Engine exportieren",
    "Fine-tune on Sequence": "Netze auf Sequenz abstimmen",
    "Fit Armature to Sequence": "Armature an Sequenz anpassen",
    "Forget Fine-tuning": "Abstimmung vergessen",
    "Go to Frame": "Zu Frame springen",
    "Import Animated Mesh": "Animiertes Mesh importieren",
    "Animated Mesh for SPRig (.abc, .pc2, .mdd, ...)": "Animiertes Mesh für SPRig (.abc, .pc2, .mdd, ...)",
    "SPRig to Game Engine (.fbx, .glb)": "SPRig in Spiel-Engine (.fbx, .glb)",
    "Install Libraries": "Bibliotheken installieren",
    "Install from Folder of Wheels": "Aus Ordner mit Wheels installieren",
    "Load Preset": "Vorlage laden",
    "Preview": "Vorschau",
    "Refit": "Neu anpassen",
    "Remove Libraries": "Bibliotheken entfernen",
    "Rig": "Rig",
    "Select": "Auswählen",
    "Show Raw Network": "Rohes Netz anzeigen",
    "Source": "Quelle",
    "Symmetrise Joints": "Gelenke symmetrisch machen",
}

GERMAN = {
    # sections
    "SPRig Presets": "SPRig-Vorlagen",
    "Sequence": "Sequenz",
    "Skeleton": "Skelett",
    "Skinning": "Skinning",
    "Motion": "Bewegung",
    "Networks": "Netze",
    "Own Armature": "Eigene Armature",
    "Advanced": "Erweitert",
    "Result": "Ergebnis",
    "Hand Over": "Übergabe",
    # settings and their choices
    "Frames": "Frames",
    "Scene": "Szene",
    "Custom": "Eigene",
    "Start": "Anfang",
    "End": "Ende",
    "Step": "Schritt",
    "Rest Pose": "Ruhepose",
    "Auto": "Automatisch",
    "Frame": "Frame",
    "Learned": "Gelernt",
    "Candidates": "Kandidaten",
    "Temperature": "Temperatur",
    "Skeleton Network": "Skelettnetz",
    "Skinning Network": "Skinning-Netz",
    "Epochs": "Epochen",
    "Joints": "Gelenke",
    "Number": "Anzahl",
    "Count": "Anzahl",
    "Tolerance": "Toleranz",
    "Names": "Namen",
    "Influences": "Einflüsse",
    "Correct Rest Shape": "Ruheform korrigieren",
    "Correct": "Korrigieren",
    "Allow Stretch": "Streckung erlauben",
    "May Stretch": "Streckbar",
    "Corrective Shape Keys": "Korrigierende Shape Keys",
    "As Shape Keys": "Als Shape Keys",
    "Residual": "Rest",
    "Root Motion": "Wurzelbewegung",
    "Hips": "Hüfte",
    "Root Bone": "Wurzel-Bone",
    "Object": "Objekt",
    "Armature": "Armature",
    "Fit": "Anpassen",
    "Weights and Motion": "Gewichte und Bewegung",
    "Weights": "Gewichte",
    "Rest Shape": "Ruheform",
    "As Bound": "Wie gebunden",
    "Rest Frame": "Ruhe-Frame",
    "Bones": "Bones",
    "Sticks": "Stäbe",
    "Octahedra": "Oktaeder",
    "None": "Keine",
    "Colour": "Farbe",
    "Plain": "Einfarbig",
    "Confidence": "Sicherheit",
    "Surface": "Oberfläche",
    "Error": "Fehler",
    "Joint": "Gelenk",
    "Raw Network": "Rohes Netz",
    "Seed": "Startwert",
    "Device": "Gerät",
    "CPU": "CPU",
    "Apple Metal": "Apple Metal",
    "Existing Folder": "Vorhandener Ordner",
    "PyTorch for": "PyTorch für",
    "Processor": "Prozessor",
    "NVIDIA": "NVIDIA",
    "AMD": "AMD",
    "View": "Ansicht",
    "Next": "Nächste",
    "Rig": "Rig",
    "Source": "Quelle",
    "Both": "Beide",
    "Engine": "Engine",
    "Folder of Wheels": "Ordner mit Wheels",
    # the status line, progress and figures
    "Alembic cache": "Alembic-Cache",
    "USD cache": "USD-Cache",
    "Simulation": "Simulation",
    "Shape keys": "Shape Keys",
    "Animation": "Animation",
    "Not animated": "Nicht animiert",
    "1 mesh": "1 Mesh",
    "{:d} meshes": "{:d} Meshes",
    "{:,} vertices": "{:,} Vertices",
    "frames {:d}–{:d}": "Frames {:d}–{:d}",
    "every {:d}": "in Schritten von {:d}",
    "{:d} joints, RMSE {:.3f} %": "{:d} Gelenke, RMSE {:.3f} %",
    "Fine-tuned on this sequence": "Auf diese Sequenz abgestimmt",
    "Worst Frame": "Schlechtester Frame",
    "This Frame": "Dieser Frame",
    "Time": "Zeit",
    "Lightest": "Am hellsten",
    "Ready for export": "Bereit zum Export",
    "Starting": "Startet",
    "Stopping": "Wird angehalten",
    "Esc: Cancel": "Esc: Abbrechen",
    "a few seconds left": "noch einige Sekunden",
    "about {:d} s left": "noch etwa {:d} s",
    "about {:d} min left": "noch etwa {:d} min",
    "Auto-Rig": "Automatisches Riggen",
    "Preview": "Vorschau",
    "Apply Preview": "Vorschau anwenden",
    "Fitting": "Anpassen",
    "Fine-tuning": "Abstimmen",
    "Install": "Installieren",
    "Looking at the meshes": "Meshes werden geprüft",
    "Frames read": "Frames gelesen",
    "Loading PyTorch": "PyTorch wird geladen",
    "Preparing the mesh": "Mesh wird vorbereitet",
    "Reading the motion": "Bewegung wird gelesen",
    "Finding rigid parts": "Starre Teile werden gesucht",
    "Fitting bones": "Bones werden angepasst",
    "Fitting the skeleton": "Skelett wird angepasst",
    "Fitting all frames": "Alle Frames werden angepasst",
    "Measuring the rig": "Rig wird vermessen",
    "Writing the armature": "Armature wird geschrieben",
    "Writing the skin weights": "Gewichte werden geschrieben",
    "Writing the keys": "Keyframes werden geschrieben",
    "Writing the shape keys": "Shape Keys werden geschrieben",
    # why a button is greyed out
    "{} is running; wait for it or cancel it": "{} läuft; warten oder abbrechen",
    "Switch to Object Mode first": "Zuerst in den Objektmodus wechseln",
    "Select one or several animated meshes": "Ein oder mehrere animierte Meshes auswählen",
    "{} neither moves nor changes shape with time; select a mesh that is animated.": (
        "{} ändert mit der Zeit weder Ort noch Form; ein animiertes Mesh auswählen."
    ),
    # tooltips of the buttons
    "Turn the selected animated meshes into one rig: an armature, skinned copies and keys that replay the motion": (
        "Die ausgewählten animierten Meshes in ein Rig verwandeln: Armature, Kopien mit Gewichten und Keyframes, die "
        "die Bewegung wiedergeben"
    ),
    "Rig the selected animated meshes as Auto-Rig does, but only draw the rig over them until it is applied": (
        "Die ausgewählten Meshes riggen, das Rig aber nur darüber zeichnen, bis es angewendet wird"
    ),
    "Write the rig that is previewed, as Auto-Rig does; nothing is computed again": (
        "Das Rig der Vorschau schreiben; nichts wird neu berechnet"
    ),
    "End the preview; nothing was written, so nothing is left of it": (
        "Die Vorschau beenden; geschrieben wurde nichts, also bleibt nichts zurück"
    ),
    "Find skin weights and keys for an armature of your own, so that it replays the selected meshes; its bones stay": (
        "Gewichte und Keyframes für eine eigene Armature finden, sodass sie die ausgewählten Meshes wiedergibt; ihre "
        "Bones bleiben"
    ),
    "Teach the networks to see one rig in every frame of the selected meshes; takes minutes, Auto-Rig then uses it": (
        "Die Netze lehren, in jedem Frame der ausgewählten Meshes dasselbe Rig zu sehen; dauert Minuten"
    ),
    "Take the networks as they were before they were fine-tuned on this sequence": (
        "Die Netze wieder so nehmen, wie sie vor der Abstimmung auf diese Sequenz waren"
    ),
    "Import animated meshes at their own frame rate and select them; a point cache (PC2, MDD) moves the active mesh": (
        "Animierte Meshes mit ihrer eigenen Framerate importieren und auswählen; ein Punkt-Cache (PC2, MDD) bewegt das "
        "aktive Mesh"
    ),
    "Stop what SPRig is doing; nothing is changed": "Anhalten, was SPRig tut; nichts wird verändert",
    "Show this frame": "Diesen Frame zeigen",
    "Show the rig's meshes, the meshes that it was made from, or both; renders always show the rig": (
        "Die Meshes des Rigs, seine Quelle oder beide zeigen; gerendert wird immer das Rig"
    ),
    "Take away all that SPRig made for this rig, and show again what it was made from": (
        "Alles entfernen, was SPRig für dieses Rig gemacht hat, und die Quelle wieder zeigen"
    ),
    "Look for what game engines would stumble over, such as uneven scale or vertices that nothing moves": (
        "Suchen, worüber Spiel-Engines stolpern würden, etwa ungleiche Skalierung oder unbewegte Vertices"
    ),
    "Write this rig, its meshes and its animation for a game engine, and nothing else of the scene": (
        "Dieses Rig mit Meshes und Animation für eine Spiel-Engine schreiben, sonst nichts aus der Szene"
    ),
    "Copy versions and traceback of the last failure to the clipboard, to send them to the developers": (
        "Versionen und Traceback des letzten Fehlers in die Zwischenablage kopieren, für die Entwickler"
    ),
    "Take the settings of this preset; frames, rest pose and files stay as they are": (
        "Die Einstellungen dieser Vorlage nehmen; Frames, Ruhepose und Dateien bleiben"
    ),
    "Keep the settings under a name, or remove a preset of your own": (
        "Die Einstellungen unter einem Namen behalten oder eine eigene Vorlage entfernen"
    ),
    # tooltips of the settings
    "Which frames are rigged": "Welche Frames das Rig wiedergibt",
    "First frame that is rigged": "Erster Frame, der gelesen wird",
    "Last frame that is rigged": "Letzter Frame, der gelesen wird",
    "Take every n-th frame; the frames between them are interpolated linearly": (
        "Jeden n-ten Frame nehmen; dazwischen wird linear interpoliert"
    ),
    "The frame whose shape becomes the rest pose, called the anchor": (
        "Der Frame, dessen Form zur Ruhepose wird, der Anker"
    ),
    "Where skeleton and skin weights come from": "Woher Skelett und Gewichte kommen",
    "The networks propose, the motion decides": "Die Netze schlagen vor, die Bewegung entscheidet",
    "The networks' rig of the rest pose; only its poses are fitted to the motion": (
        "Das Rig der Netze für die Ruhepose; nur die Posen werden an die Bewegung angepasst"
    ),
    "The motion alone, without networks": "Die Bewegung allein, ohne Netze",
    "How the number of joints is found": "Wie die Zahl der Gelenke bestimmt wird",
    "As many joints as the tolerance asks for": "So viele Gelenke, wie die Toleranz verlangt",
    "Number of joints; the rig has fewer when the motion does not hold that many": (
        "Zahl der Gelenke; weniger, wenn die Bewegung nicht so viele hergibt"
    ),
    "Error at which no more joints are added, in per cent of the bounding box's diagonal": (
        "Fehler, ab dem keine Gelenke mehr dazukommen, in Prozent der Diagonale der Bounding Box"
    ),
    "What the bones are called; names of other software need a whole humanoid": (
        "Wie die Bones heißen; die Namen anderer Software brauchen einen ganzen Humanoiden"
    ),
    "Joints that may move one vertex; game engines expect 4": (
        "Gelenke, die einen Vertex bewegen dürfen; Spiel-Engines erwarten 4"
    ),
    "Let the rest shape move by hundredths of a per cent where all frames agree that it should": (
        "Die Ruheform um Hundertstel Prozent bewegen, wo alle Frames es nahelegen"
    ),
    "Key the location of the few bones where rotation alone costs most; otherwise bones only rotate": (
        "Auch den Ort der wenigen Bones animieren, bei denen Drehung allein am meisten kostet"
    ),
    "Add what the bones leave over as one shape key per frame, for cloth and faces; makes files large": (
        "Was die Bones übrig lassen als einen Shape Key pro Frame hinzufügen, für Stoff und Gesichter; macht Dateien "
        "groß"
    ),
    "What carries the character's horizontal travel; a fitted armature of your own stays as it is": (
        "Was die horizontale Fortbewegung trägt; eine angepasste eigene Armature bleibt, wie sie ist"
    ),
    "Skeletons that the network proposes, of which the likeliest is taken": (
        "Skelette, die das Netz vorschlägt; das wahrscheinlichste wird genommen"
    ),
    "0: the likeliest skeleton; above: drawn by chance, the higher the more varied": (
        "0: das wahrscheinlichste Skelett; darüber: zufällig gezogen, je höher, desto vielfältiger"
    ),
    "How often fine-tuning goes through the frames, at most; it ends when nothing more is gained": (
        "Wie oft die Abstimmung höchstens durch die Frames geht; sie endet, wenn nichts mehr gewonnen wird"
    ),
    "Of every random choice; the same seed gives the same rig": (
        "Aller zufälligen Entscheidungen; derselbe Startwert ergibt dasselbe Rig"
    ),
    "Where the rig is computed": "Wo das Rig berechnet wird",
    "What is found for the armature's bones": "Was für die Bones der Armature gefunden wird",
    "Which shape of the mesh belongs to the armature's rest pose": (
        "Welche Form des Meshes zur Ruhepose der Armature gehört"
    ),
    (
        "A folder that already holds torch, scipy and safetensors for this Blender's Python, such as a "
        "site-packages folder; used instead of an installation by SPRig"
    ): (
        "Ein Ordner, in dem torch, scipy und safetensors für das Python dieses Blenders schon liegen, etwa ein "
        "site-packages-Ordner; wird statt einer Installation durch SPRig benutzt"
    ),
    "A frame of your choice, such as a T-pose": "Ein Frame Ihrer Wahl, etwa eine T-Pose",
    "A number of your choice": "Eine Zahl Ihrer Wahl",
    "A range of your own": "Ein eigener Bereich",
    "An NVIDIA card, or an AMD card with a ROCm build of PyTorch": (
        "Eine Karte von NVIDIA, oder von AMD mit einem PyTorch für ROCm"
    ),
    "As lines that fade from the bone's head to its tail": (
        "Als Linien, die vom Kopf des Bones zu seinem Ende blasser werden"
    ),
    "As solid bones": "Als feste Bones",
    "Ask the skeleton network about every frame by itself, and draw its answers beside the rig to compare": (
        "Das Skelettnetz zu jedem Frame einzeln befragen und seine Antworten zum Vergleich neben das Rig zeichnen"
    ),
    "By anatomy where the skeleton shows it, otherwise numbered; for any creature": (
        "Nach der Anatomie, wo das Skelett sie zeigt, sonst nummeriert; für jedes Wesen"
    ),
    "Copy what is known about the libraries, and what was said when they failed, to the clipboard": (
        "In die Zwischenablage kopieren, was über die Bibliotheken bekannt ist und was sie meldeten, als es nicht ging"
    ),
    "Download PyTorch and SciPy into SPRig's own folder; Blender's own Python is left alone": (
        "PyTorch und SciPy in SPRigs eigenen Ordner herunterladen; Blenders Python bleibt, wie es ist"
    ),
    "Draw what the network says of each frame by itself, in light blue": (
        "In Hellblau zeichnen, was das Netz zu jedem Frame für sich sagt"
    ),
    "Edit the previewed joints in Edit Mode: move, add, delete, reparent and rename bones, then press Refit": (
        "Die Gelenke der Vorschau im Edit Mode bearbeiten: Bones verschieben, hinzufügen, löschen, umhängen und "
        "umbenennen, dann neu anpassen"
    ),
    "File of a skeleton network (SPRig's .safetensors, Puppeteer's .pth); empty for SPRig's own": (
        "Datei eines Skelettnetzes (.safetensors von SPRig, .pth von Puppeteer); leer für SPRigs eigenes"
    ),
    "File of a skinning network (SPRig's .safetensors, Puppeteer's .pth); empty for SPRig's own": (
        "Datei eines Skinning-Netzes (.safetensors von SPRig, .pth von Puppeteer); leer für SPRigs eigenes"
    ),
    "Fit skin weights and motion again for exactly these bones, and preview that; the frames are not read again": (
        "Gewichte und Bewegung für genau diese Bones neu bestimmen und als Vorschau zeigen; die Frames werden "
        "nicht neu gelesen"
    ),
    "Frame in which the mesh has the armature's rest pose; it has to be one of the frames read": (
        "Frame, in dem das Mesh die Ruhepose der Armature hat; er muss unter den gelesenen sein"
    ),
    "Frame whose shape becomes the rest pose; it has to be one of the frames read": (
        "Frame, dessen Form zur Ruhepose wird; er muss unter den gelesenen sein"
    ),
    "How far every vertex is from where the sequence has it on this frame": (
        "Wie weit jeder Vertex in diesem Frame von seinem Ort in der Sequenz entfernt ist"
    ),
    "How far the joint turns: light for 90° and more, grey where that is not seen": (
        "Wie weit sich das Gelenk dreht: hell ab 90°, grau, wo davon nichts zu sehen ist"
    ),
    "How sure the network was of the joint: light for sure, grey for not known": (
        "Wie sicher sich das Netz des Gelenks war: hell für sicher, grau für unbekannt"
    ),
    "How the previewed bones are drawn": "Wie die Bones der Vorschau gezeichnet werden",
    "In a separate process, which takes some seconds to start for every rig": (
        "In einem eigenen Prozess, dessen Start bei jedem Rig einige Sekunden dauert"
    ),
    "Inside Blender; in a separate process where PyTorch does not load in Blender": (
        "In Blender; in einem eigenen Prozess, wo PyTorch sich in Blender nicht laden lässt"
    ),
    "Install PyTorch and SciPy from a folder of downloaded wheels, without the network": (
        "PyTorch und SciPy ohne Netz aus einem Ordner heruntergeladener Wheels installieren"
    ),
    "Joint whose skin weights are drawn; empty for all joints in colours of their own": (
        "Gelenk, dessen Gewichte gezeichnet werden; leer für alle Gelenke in eigenen Farben"
    ),
    "Keys for the weights that the mesh has": "Keyframes für die Gewichte, die das Mesh hat",
    "Make left and right joints mirror each other, in the mean of both; locked ones stay where they are": (
        "Linke und rechte Gelenke zueinander spiegeln, in der Mitte beider; gesperrte bleiben, wo sie sind"
    ),
    "Merge or split this bone as suggested; Refit then finds weights and motion": (
        "Diesen Bone wie vorgeschlagen verschmelzen oder teilen; die neue Anpassung findet dann Gewichte und Bewegung"
    ),
    "Not at all": "Gar nicht",
    "Nothing, all bones are alike": "Nichts, alle Bones sind gleich",
    "Nothing, only the mesh itself is seen": "Nichts, nur das Mesh selbst ist zu sehen",
    "One more bone, called root, on the ground below the character": (
        "Ein weiterer Bone namens root, auf dem Boden unter der Figur"
    ),
    "Remove the libraries that SPRig installed": "Die Bibliotheken entfernen, die SPRig installiert hat",
    "Select the bone that this is about": "Den Bone auswählen, um den es geht",
    "Skin weights and keys; locked vertex groups keep their weights": (
        "Gewichte und Keyframes; gesperrte Vertex Groups behalten ihre Gewichte"
    ),
    "Skin weights for the armature's own animation": "Gewichte für die eigene Animation der Armature",
    "Take the adjusted joints away, and bring back the preview that was there before": (
        "Die bearbeiteten Gelenke wegnehmen und die Vorschau von vorher zurückholen"
    ),
    "Take this message away": "Diese Meldung ausblenden",
    "The armature whose bones are fitted; empty for the one that is active or that moves the mesh": (
        "Die Armature, deren Bones angepasst werden; leer für die aktive oder die, die das Mesh bewegt"
    ),
    "The frame of greatest surface area, where the limbs are most spread out": (
        "Der Frame mit der größten Oberfläche, in dem die Glieder am weitesten ausgestreckt sind"
    ),
    "The graphics card when PyTorch can use it, else the processor": (
        "Die Grafikkarte, wenn PyTorch sie benutzen kann, sonst der Prozessor"
    ),
    "The graphics part of an Apple processor": "Der Grafikteil eines Apple-Prozessors",
    "The location of the armature itself": "Der Ort der Armature selbst",
    "The mesh without deformation; it has to be bound to the armature": (
        "Das unverformte Mesh; es muss an die Armature gebunden sein"
    ),
    "The names of Mixamo's characters": "Die Namen der Figuren von Mixamo",
    "The names of Rigify's human metarig": "Die Namen von Rigifys menschlichem Metarig",
    "The names of Unity's humanoid avatars": "Die Namen der Humanoiden von Unity",
    "The names of Unreal Engine 5's mannequins": "Die Namen der Mannequins der Unreal Engine 5",
    "The processor": "Der Prozessor",
    "The root joint, as the motion gives it": "Das Wurzelgelenk, wie die Bewegung es ergibt",
    "The scene's frame range": "Der Frame-Bereich der Szene",
    "The shape of a frame in which the mesh has the armature's rest pose": (
        "Die Form eines Frames, in dem das Mesh die Ruhepose der Armature hat"
    ),
    "The skin weights of a joint, or all joints in colours of their own": (
        "Die Gewichte eines Gelenks, oder alle Gelenke in eigenen Farben"
    ),
    "What is drawn on the surface that the previewed rig moves": (
        "Was auf die Oberfläche gezeichnet wird, die das Rig der Vorschau bewegt"
    ),
    "What the colours of the previewed bones mean": "Was die Farben der Bones in der Vorschau bedeuten",
    "What kind of device the PyTorch that Install downloads is made for": (
        "Für welche Art von Gerät das PyTorch ist, das Installieren herunterlädt"
    ),
    "Works everywhere; on macOS also with Metal": "Läuft überall; unter macOS auch mit Metal",
    "CUDA 13: needs an NVIDIA driver 580 or later; a download of gigabytes": (
        "CUDA 13: braucht einen NVIDIA-Treiber ab 580; mehrere Gigabyte Download"
    ),
    "ROCm 7.1, for Linux: needs AMD's driver; a download of gigabytes": (
        "ROCm 7.1, für Linux: braucht AMDs Treiber; mehrere Gigabyte Download"
    ),
    "Whether PyTorch runs inside Blender or in a process of Blender's Python beside it": (
        "Ob PyTorch in Blender läuft oder in einem Prozess von Blenders Python daneben"
    ),
}


def messages(texts: dict[str, str], buttons: dict[str, str]) -> dict[tuple[str, str], str]:
    """A language as Blender wants it: (context, English) to the other language."""
    return {
        **{(DEFAULT, text): translated for text, translated in texts.items()},
        **{(OPERATOR, text): translated for text, translated in buttons.items()},
    }


LANGUAGES = {"de": messages(GERMAN, GERMAN_BUTTONS)}  # Blender finds de for de_DE, too


def register(package: str) -> None:
    bpy.app.translations.register(package, LANGUAGES)


def unregister(package: str) -> None:
    bpy.app.translations.unregister(package)
