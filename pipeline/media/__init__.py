"""Pictures, frames and videos as files."""
