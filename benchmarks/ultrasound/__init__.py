"""The experiment of the Clustered-CAM paper, redone on public thyroid ultrasound."""
