"""What this application tells the world."""

from pydantic import BaseModel


class UserCreated(BaseModel):
    """`user_created`."""

    email: str
    first_name: str
    last_name: str
