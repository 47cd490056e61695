"""Many runs: what a sweep asks for, started where they are to run."""
