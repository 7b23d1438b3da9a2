"""What users write, for a type checker to read; it is never run. Lines that are wrong say what is to be refused."""

from pathlib import Path

from PIL import Image

from profusion_pipeline import (
    Concept,
    CustomizeConfig,
    ProFusionPipeline,
    PromptNet,
    SubjectEmbedding,
    TrainingConfig,
    convert_checkpoint,
    customizing,
    demo_portraits,
    export_pipeline,
    inpainter,
    load_demo_pipeline,
    push_pipeline,
)
from profusion_pipeline.common.made_with import read_record, record_of, save_options
from profusion_pipeline.method.faces import Face, crop_face, find_faces

pipe: ProFusionPipeline = load_demo_pipeline()
portraits: list[Image.Image] = demo_portraits()
subject: SubjectEmbedding = pipe.encode_subject(portraits[0], weights=[1.0], crop_face="auto")
pipe("S* at sea", subject=subject, guidance_scale=3, num_fusion_steps=0)
pipe(["S* at sea", "S* in red"], image=["a.png", Path("b.png")], negative_prompt="blue")
concept: Concept = pipe.customize(portraits[0], steps=3)
concept.save_pretrained("ada")
again: Concept = Concept.from_pretrained(Path("ada"), revision="main")
pipe.load_concept(again, name="ada")
pipe.set_concept_scale(0.5, "ada")
network: type[PromptNet] = PromptNet
config = CustomizeConfig(steps=3)
rate: float = TrainingConfig(model="m", data="d", output="o").learning_rate
address: str = push_pipeline("demo", "me/mine", private=True)
record = record_of(pipe, model="demo", prompt="S*", seed=7, settings={})
portraits[0].save("a.png", **save_options(".png", record))
prompt: object = read_record("a.png")["prompt"]
cut: Image.Image = crop_face("a.png", warn=print)
faces: list[Face] = find_faces(cut)
functions = (customizing, inpainter, convert_checkpoint, export_pipeline)

pipe(7)  # type: ignore[arg-type]
pipe("S*", portraits[0], 3)  # type: ignore[call-arg, arg-type]
pipe.encode_subject(portraits[0], weights="heavy")  # type: ignore[arg-type]
concept.save_pretrained()  # type: ignore[call-arg]
CustomizeConfig(steps="many")  # type: ignore[arg-type]
