"""Another Linux kernel for tests that need what the running one may lack."""
