"""What is no Triton repository yet (lone model files, functions, other servers' models), made into models of one."""
