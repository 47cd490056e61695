"""`tario <job> …`: one command, a file a job."""
