"""What each command does, one file per group; `cli` only names them. Heavy libraries are imported when a command needs them."""
