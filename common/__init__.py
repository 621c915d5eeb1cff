"""Plain data and pure functions that every room speaks: errors, tensor tables, files, devices."""
