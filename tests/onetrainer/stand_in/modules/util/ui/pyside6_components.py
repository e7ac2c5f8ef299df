"""Would make widgets: gives what one was asked for."""


def label(master, row, column, text, tooltip=None, wide_tooltip=False, underline=False):
    return master, row, column, text, tooltip


def entry(master, row, column, ui_state, var_name, command=None, required=False, extra_validate=None):
    return master, row, column, var_name


def switch(master, row, column, ui_state, var_name, command=None):
    return master, row, column, var_name


def button(master, row, column, text, command, tooltip=None):
    return master, row, column, text


def options(master, row, column, values, ui_state, var_name, command=None):
    return master, row, column, var_name


def options_kv(master, row, column, values, ui_state, var_name, command=None):
    return master, row, column, var_name
