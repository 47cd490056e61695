"""`tario view`: a local page on which a slide's H&E and its gene maps are looked at."""
