@echo off
rem run-cmd.bat NAME [ARGUMENT ...]  runs scripts\NAME.py in its own Python environment, made on first use.
rem run-cmd.bat test [ARGUMENT ...]  runs the tests, over all cores; with names of files, those alone, in one process.
setlocal enabledelayedexpansion
cd /d "%~dp0"

if "%~1"=="" (
    echo usage: run-cmd.bat NAME [ARGUMENT ...], where NAME is test or the name of a file in scripts
    exit /b 2
)
set "name=%~1"
set "rest="
:collect
shift
if "%~1"=="" goto collected
set rest=!rest! "%~1"
goto collect
:collected

if not exist ".venv\Scripts\python.exe" (
    if defined PYTHON (
        "%PYTHON%" -m venv .venv || exit /b 1
    ) else (
        py -3.11 -m venv .venv 2>nul || python -m venv .venv || (
            echo error: Python 3.11 or newer was not found. Install it, or set PYTHON to its path. 1>&2
            exit /b 1
        )
    )
)
rem the window says what is missing, before much is downloaded
if "%name%"=="train_ui" (
    ".venv\Scripts\python.exe" -c "import tkinter" 2>nul || (
        ".venv\Scripts\python.exe" scripts\train_ui.py
        exit /b 1
    )
)
rem before anything is installed, so that the other builds need not be downloaded first
if "%name%"=="install_torch" (
    ".venv\Scripts\python.exe" scripts\install_torch.py %rest%
    exit /b !errorlevel!
)
call :install requirements.txt || exit /b 1

if "%name%"=="test" (
    call :install requirements-dev.txt || exit /b 1
    ".venv\Scripts\python.exe" -m pytest %rest%
    exit /b !errorlevel!
)
if not exist "scripts\%name%.py" (
    echo error: there is no scripts\%name%.py 1>&2
    exit /b 2
)
".venv\Scripts\python.exe" "scripts\%name%.py" %rest%
exit /b %errorlevel%

:install
rem anew if the file changed, or if this folder was moved: the optimizers are used where they lie, in scaled-optim.
rem Before that the build of torch for this machine, which is asked for once.
>".venv\wanted-%~1" echo "%cd%"
type "%~1" scaled-optim\pyproject.toml >>".venv\wanted-%~1" 2>nul
if exist ".venv\torch-build" fc /b ".venv\wanted-%~1" ".venv\installed-%~1" >nul 2>nul && exit /b 0
".venv\Scripts\python.exe" scripts\install_torch.py --remembered || exit /b 1
echo Installing %~1 (once; this takes a few minutes) ... 1>&2
".venv\Scripts\python.exe" -m pip install --quiet --disable-pip-version-check -r "%~1" || exit /b 1
copy /y ".venv\wanted-%~1" ".venv\installed-%~1" >nul
exit /b 0
