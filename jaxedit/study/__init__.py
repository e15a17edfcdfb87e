"""Running a study: edits one after the other, measured, guarded, journalled, resumed."""
