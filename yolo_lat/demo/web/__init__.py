"""Detection in the browser: one page, served here or written as a folder for any web host."""
