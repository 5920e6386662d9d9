"A live panel of what is served"
