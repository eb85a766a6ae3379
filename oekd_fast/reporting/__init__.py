"""The report of finished runs: an HTML page with tables and pictures.

`finished_runs` reads run folders and groups runs that differ in the seed only. `section` writes the part of the page on
one group, with the building blocks of `page`. `evidence` loads the networks and test images, `predictions`,
`calibration`, `agreement`, `confusion` and `grad_cam` compute what is shown, and `prediction_figures`,
`confusion_figures` and `cam_figures` draw it.

`exported_run` writes the networks of a run to files, and `hub_student` prepares one of them for the Hugging Face hub.

Nothing here trains, and importing these modules does not import matplotlib.
"""
