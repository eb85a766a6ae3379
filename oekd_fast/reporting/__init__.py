"""The report of finished runs: an HTML page with tables and pictures.

`finished_runs` reads run folders and groups runs that differ in the seed only. `section` lists the chapters of the page
on one group. `evaluation` predicts the test images with the networks that `evidence` loads; `gains` compares students
in the family with the same students alone, by the tests of `significance`; `budgets` says which student fits which
budget. `headline`, `students_chapter`, `use_chapter`, `prediction_chapters`, `cam_chapter`, `latency_section` and
`settings_chapter` write the chapters with the building blocks of `page`; `document` and `style` make the page of them.
`predictions`, `calibration`, `agreement`, `confusion`, `worst_images` and `grad_cam` compute what is shown, and
`prediction_figures`, `confusion_figures`, `image_figures` and `cam_figures` draw it, with `class_rows`. A new
chapter is a function that yields HTML, and a line in `section`.

`exported_run` writes the networks of a run to files, and `hub_student` prepares one of them for the Hugging Face hub.

Nothing here trains, and importing these modules does not import matplotlib.
"""
