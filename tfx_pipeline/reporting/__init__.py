"""What a run says at its end: the summary, the HTML report and the model card."""
