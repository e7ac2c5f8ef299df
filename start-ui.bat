@echo off
rem Opens the window. Makes the Python environment on first use.
call "%~dp0run-cmd.bat" train_ui %*
