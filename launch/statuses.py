"""Exit statuses of jobs, and what they mean to whoever starts them again."""

TOLD = (130, 143)
"""Exit statuses of a job that was told to end, and did: it goes on when it is started again."""
MISTAKE = 2
"""Of a job that cannot be done as it was asked for: started again, it would end alike."""
ABSENT = 75
"""Of a job that waited for what did not come, as for the hosts of a slice that was taken away: it failed at nothing."""
