"""The family of students and everything that is kept of it.

- `ensemble`: `build_ensemble` builds the students on their shared base; `student(j)` returns one of them.
- `student`: one student as a plain module.
- `exporting`: students and families as ONNX files and programs of torch.export.
- `with_loss`: a family and its losses as one module, for training loops of others.
- `gate`: learnt weights of the students for each image.
- `teacher`: a fixed network that students learn from. `teacher_sources` loads it: a saved student, a program, a module.
- `saved`: save and load students and their gate.
- `hub`: students on the Hugging Face hub, with the model cards of `model_card`.
- `flops`: floating-point operations of each student.
"""
