"""Training recipes: problems, trackers, reports and the script that runs them."""
