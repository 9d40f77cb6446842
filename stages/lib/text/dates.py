"""One fixed date for chat templates that write today's date, as those of Llama 3.2 and SmolLM3 do.

With the real date, training or evaluation tomorrow would not give the results of today. The saved template is not
changed, so in use it writes the real date.
"""

DATE = "26 Jul 2024"
"""What Llama's templates write if they are given no date."""


def dated(template: str) -> str:
    """Return the chat template with `DATE` in place of today's date; one that writes no date is unchanged."""
    if "strftime_now" not in template:
        return template
    return f"{{%- macro strftime_now(format) %}}{DATE}{{% endmacro -%}}{template}"
