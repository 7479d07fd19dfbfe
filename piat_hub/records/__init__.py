"""What a run leaves on disk, and how it is read again. Nothing here but `tensors` and `groups` loads torch."""
