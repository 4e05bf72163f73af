"""What a step of pre-training minimises: the standard and the adversarial losses of a micro-batch, and which of them
applies when."""
