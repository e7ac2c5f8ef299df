@echo off
rem Opens the window. Makes the Python environment on first use.
call "%~dp0run-cmd.bat" train_ui %*
rem after a double click, what went wrong would be gone with its window
if errorlevel 1 pause
