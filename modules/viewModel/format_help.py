from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.enum.ModelType import ModelType
from modules.util.enum.TrainingMethod import TrainingMethod
from modules.util.texts import tr
from modules.util.UserError import UserError
from modules.viewModel.FieldHints import NOTHING, Note
from modules.viewModel.value_names import value_name

# see `in_comfy` of the families' names
NOT_IN_COMFY = frozenset({ModelType.SANA})
FOR_COMFY = (ModelFormat.KOHYA_LORA, ModelFormat.COMFY_LORA)


def comfy_note(config: TrainConfig) -> Note:
    """What ComfyUI makes of the output in the chosen format, in one or two sentences; none where nothing is known.

    Loads torch, and is quick once that is there.
    """
    chosen = config.output_model_format
    if config.training_method == TrainingMethod.FINE_TUNE:
        return Note(tr("ComfyUI loads no diffusers folder."), True) if chosen == ModelFormat.DIFFUSERS else NOTHING
    if config.training_method != TrainingMethod.LORA:
        return NOTHING
    if config.model_type in NOT_IN_COMFY:
        return Note(tr("ComfyUI does not know this model and loads no adapters of it."), True)

    from modules.modelSaver.adapter_layout import LAYOUTS
    from modules.modelSaver.adapter_output import adapter_format, planned_kind
    from modules.modelSaver.format_rules import comfy_remarks

    written = adapter_format(config)
    if written not in LAYOUTS:
        # that of a whole model, which is told as a problem
        return NOTHING
    try:
        remarks = comfy_remarks(written, planned_kind(config))
    except UserError:
        # which is told as a problem
        return NOTHING
    if remarks:
        return Note(remarks[0], True)
    if written in FOR_COMFY:
        return Note(tr("ComfyUI loads it as it is."))
    names = [value_name(ModelFormat, name) for name in FOR_COMFY]
    return Note(tr("For ComfyUI choose “{first}” or “{second}”.", first=names[0], second=names[1]), True)
