"""One date for chat templates that write today's, as those of Llama 3.2 and SmolLM3 do.

With the real one, a model trained or evaluated tomorrow would not be the model of today. In use, it is the real one.
"""

DATE = "26 Jul 2024"
"""What Llama's templates write if they are not told the date."""


def dated(template: str) -> str:
    """Return the chat template with `DATE` for today; the text of one that writes no date is unchanged."""
    if "strftime_now" not in template:
        return template
    return f"{{%- macro strftime_now(format) %}}{DATE}{{% endmacro -%}}{template}"
